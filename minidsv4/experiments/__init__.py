"""What notebooks measure and nobody deploys."""
