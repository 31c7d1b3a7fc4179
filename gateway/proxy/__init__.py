"""The front ends that programs on this machine talk to: one task for each of their connections."""
