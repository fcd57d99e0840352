"""Who is in the swarm: failure detection, gossip, anti-entropy and healing, all pure."""
