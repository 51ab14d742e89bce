"""Networks rewritten: which convolution feeds which norm, and what is done with that knowledge."""
