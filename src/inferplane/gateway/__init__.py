"""How requests reach replicas."""
