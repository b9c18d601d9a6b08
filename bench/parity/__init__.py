"""The simulator beside the mesh: the same requests through both, compared."""
