"""What Baton's services share. Nothing here imports a service."""
