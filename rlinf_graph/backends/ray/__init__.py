"""Real processes: one worker for each device, on Ray."""
