"""The IIT ML service: says from sixteen sensor readings what state a machine is in."""
