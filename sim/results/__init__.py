"""What a run is judged by, and how that is shown."""
