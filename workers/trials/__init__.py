"""What a trial may be: a module in this folder whose `run` takes a TrialSpec. What it finds is kept by `kept`."""
