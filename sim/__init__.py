"""An event-driven simulator of the mesh that runs the services' own policy objects."""
