"""What a run is made of, one part a file; `attndiff.training.build` puts them together."""
