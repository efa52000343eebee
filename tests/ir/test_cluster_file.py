import textwrap
from pathlib import Path

import pytest

from rlinf_graph.ir import hardware
from rlinf_graph.ir.cluster_file import dump_cluster, load_cluster
from rlinf_graph.ir.diagnostic import CompileError

EXAMPLES = sorted((Path(__file__).parents[2] / "clusters").glob("*.toml"))
SHORT = ["16xH100", "8xH100+8xH20", "4 x l40s", "32xA100-40GB", "6xcpu", "8xb200", "8xH200"]


def refused(spec: str) -> str:
    with pytest.raises(CompileError) as caught:
        load_cluster(spec)
    assert {d.code for d in caught.value.diagnostics} == {"RG0405"}
    return str(caught.value)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> str:
        Path("c.toml").write_text(textwrap.dedent(text), encoding="utf-8")
        return "c.toml"

    return write


@pytest.mark.parametrize("spec", [*map(str, EXAMPLES), *SHORT, "local"])
def test_a_dumped_cluster_loads_equal(spec: str, write) -> None:
    cluster = load_cluster(spec)
    assert load_cluster(write(dump_cluster(cluster))) == cluster


def test_examples_are_there() -> None:
    assert [p.name for p in EXAMPLES] == ["h100x16.toml", "h100x8.toml", "h20x8-h100x8.toml"]


def test_a_short_name_means_machines_of_eight() -> None:
    cluster = load_cluster("16xH100")
    (group,) = cluster.groups
    assert (cluster.name, cluster.size, group.nodes, group.devices_per_node) == (
        "h100x16",
        16,
        2,
        8,
    )
    assert group.device.name == "H100-SXM-80GB"
    assert cluster.summary() == "16 × H100-SXM-80GB"
    assert load_cluster("4xH100").groups[0].nodes == 1


def test_a_short_name_and_its_file_mean_the_same_hardware() -> None:
    (short,) = load_cluster("16xH100").groups
    (filed,) = load_cluster(str(EXAMPLES[0])).groups
    assert short == filed


def test_a_file_replaces_figures_of_the_catalogue(write) -> None:
    cluster = load_cluster(
        write("""
        [[node_group]]
        name = "a"
        device = "h100"
        nodes = 1
        devices_per_node = 4
        memory_gb = 94.5
        flops.bfloat16_tflops = 800
        [node_group.inside]
        bandwidth_gb_s = 100
        latency_us = 5
        """)
    )
    (group,) = cluster.groups
    assert cluster.name == "c"
    assert group.device.memory == 94.5e9
    assert group.device.peak("bfloat16") == 800e12
    assert group.device.peak("float32") == 67e12
    assert (group.inside.bandwidth, group.inside.latency) == pytest.approx((100e9, 5e-6))
    assert group.between == hardware.catalogue()["H100-SXM-80GB"].between
    assert group.device.source.endswith("; changed")


def test_every_error_of_a_file_is_named_with_its_line(write) -> None:
    text = refused(
        write("""\
        nam = "x"
        [[node_group]]
        name = "a"
        device = "H10"
        nodes = "2"
        devices_per_node = 0
        flops.bfloat16 = 3
        [node_group.inside]
        bandwidth = 3
        [[node_group]]
        name = "a"
        """)
    )
    assert (
        text.partition("\n\n")[0]
        == textwrap.dedent("""
        error[RG0405]: unknown key `nam`
         --> c.toml:1:1
          |
        1 | nam = "x"
          | ^^^^^^^^^
          = help: did you mean `name`?
        """).strip()
    )
    for message, line in [
        ("`nodes` has to be a whole number", 5),
        ("`devices_per_node` has to be positive", 6),
        ("there is no device `H10` in the catalogue", 4),
        ("unknown key `bandwidth` in `inside`", 9),
        ("`inside` needs `latency_us`", 8),
        ("unknown key `bfloat16` in `flops`", 7),
        ("a node group needs `device`", 10),
    ]:
        assert f"{message}\n" in text
        assert f"c.toml:{line}:1" in text[text.index(message) :].partition("\n\n")[0]


def test_groups_of_one_name_are_refused(write) -> None:
    group = '[[node_group]]\nname = "a"\ndevice = "H100"\nnodes = 1\ndevices_per_node = 8\n'
    assert "two node groups are called `a`" in refused(write(group + group))


def test_text_that_is_no_toml_is_refused_with_its_line(write) -> None:
    assert "c.toml:2:1" in refused(write("name = 'a'\nthis is\n"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("12xH100", "write 8xH100 or 16xH100"),
        ("8xH101", "did you mean `H100`?"),
        ("nowhere.toml", "there is no cluster file `nowhere.toml`"),
        ("0xH100", "not whole machines"),
    ],
)
def test_a_wrong_name_is_refused(spec: str, message: str) -> None:
    assert message in refused(spec)


@pytest.mark.parametrize("entry", hardware.catalogue().values(), ids=lambda e: e.device.name)
def test_the_catalogue_is_complete(entry: hardware.Entry) -> None:
    device = entry.device
    assert device.kind in ("gpu", "cpu")
    assert len(device.source) > 20
    assert device.peak("bfloat16") >= device.peak("float32") > 0
    assert device.memory > 1e9
    assert entry.between.bandwidth <= 2 * entry.inside.bandwidth


def test_a_rack_is_machines_that_one_link_connects() -> None:
    group = load_cluster("144xGB200").groups[0]
    assert (group.nodes, group.devices_per_node, group.machines_inside) == (36, 4, 18)
    assert group.domain == 72
    cluster = load_cluster("8xH100+8xGB200+16xH100")
    assert cluster.domains_of(range(32)).tolist() == [0] * 8 + [1] * 8 + [2] * 8 + [3] * 8
    assert cluster.machines_of(range(8, 16)).tolist() == [1] * 4 + [2] * 4


OWN = """
[[node_group]]
name = "own"
device = "X1"
nodes = 2
devices_per_node = 16
memory_gb = 128
memory_bandwidth_gb_s = 6000
flops.float32_tflops = 50
flops.bfloat16_tflops = 800
machines_inside = 2
[node_group.host_link]
bandwidth_gb_s = 64
latency_us = 10
[node_group.inside]
bandwidth_gb_s = 300
latency_us = 4
[node_group.between]
bandwidth_gb_s = 25
latency_us = 10
"""


def test_a_device_of_the_users_own_needs_no_catalogue(write) -> None:
    cluster = load_cluster(write(OWN))
    group = cluster.groups[0]
    assert (group.size, group.domain, group.device.kind) == (32, 32, "gpu")
    assert group.device.memory == 128e9
    assert group.device.peak("bfloat16") == 800e12
    assert load_cluster(write(dump_cluster(cluster))).groups == cluster.groups


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("memory_gb = 128\n", "", "; a device of your own needs `memory_gb` too"),
        ("flops.float32_tflops = 50\n", "", "`X1` needs `float32_tflops`"),
        ('"X1"', '"X1"\nkind = "npu"', "`kind` has to be gpu or cpu"),
        ('"X1"', '"H100"\nkind = "cpu"', "`kind` is the catalogue's to say"),
    ],
)
def test_a_device_of_the_users_own_is_refused_with_what_it_lacks(
    write, old: str, new: str, message: str
) -> None:
    assert message in refused(write(OWN.replace(old, new)))


def test_aliases_name_one_device() -> None:
    names = [name.lower() for name in hardware.names()]
    assert len(names) == len(set(names))
