"""First in the path, it makes a Python of one that has cloudpickle one that has not."""

raise ModuleNotFoundError("hidden by the tests", name="cloudpickle")
