"""What a trial may be: a role is a module in this folder whose `run` takes a TrialSpec."""

ROLES = ("chain", "judge", "estimator", "estimator_winner", "settings")
