"""What a run has to show for itself: terminal tables, and one HTML page that needs nothing else."""
