"""Robot control in one network call: Drifting Policy (paper Sec. 5.3), its simulators, experts and demonstrations."""
