"""The paper's 2-D figures: the smallest domain, and the one to copy for a new one."""
