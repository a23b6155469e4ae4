"""May this be paid?  Pure; it can only say no."""
