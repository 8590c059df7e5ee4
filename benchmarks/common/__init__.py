"""What the benchmarks of whole jobs share: a cluster on this computer, jobs on it, and the head of a results page."""
