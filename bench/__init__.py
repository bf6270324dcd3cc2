"""Benchmarks of gewu against its peers, one folder a topic: `python -m bench TOPIC` writes `bench/TOPIC/latest.json`."""
