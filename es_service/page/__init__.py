"""The live page of a run: what a browser on this machine shows of the files in the run's directory."""
