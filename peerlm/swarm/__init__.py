"""What a node sees of the swarm: members with their vitals, token count, choice of partners."""
