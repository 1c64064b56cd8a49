"""The machine: devices, memory, signals, random number generators, processes."""
