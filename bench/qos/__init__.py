"""`make bench-qos`: admission under load, in the simulator and in the mesh."""
