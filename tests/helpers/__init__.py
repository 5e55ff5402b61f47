"""What the tests share; functions that run in spawned children must be importable, so they are here."""
