"""Graph to plan: passes, cost, schedule, lowering, simulation and explanation."""
