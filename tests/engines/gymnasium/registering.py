"""A module that an id names: importing it registers what stands after the colon."""

import gymnasium as gym

gym.register("Twice-v0", "gymnasium.envs.classic_control.cartpole:CartPoleEnv")
