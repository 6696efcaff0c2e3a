"""What is done to running fleets from outside: the dead letters of their handlers looked at, sent again, thrown away."""
