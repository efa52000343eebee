"""What a channel raises. Every message says who waits for whom, or who failed first."""

from __future__ import annotations


class ChannelError(RuntimeError):
    """Anything that a channel raises."""


class Full(ChannelError):
    """A put that may not wait found no room."""


class Empty(ChannelError):
    """A get that may not wait found nothing, or what is there is for one who waits already."""


class EndOfStream(ChannelError, EOFError):
    """The channel is closed and everything in it has been taken."""


class Closed(ChannelError):
    """A put after the end of the stream was announced."""


class TimedOut(ChannelError, TimeoutError):
    """A wait was longer than its timeout."""


class Stuck(ChannelError):
    """A batch that can never come together: the key is full and its weight too small."""


class TooLarge(ChannelError, ValueError):
    """An item with more bytes than the channel may ever hold."""


class NameTaken(ChannelError):
    """The name belongs to a channel that is not closed."""


class PeerFailed(ChannelError):
    """A producer or a consumer failed; the first cause, and who it was."""


class Gone(PeerFailed):
    """Ray cannot deliver an item or a message; why, the broker may know."""
