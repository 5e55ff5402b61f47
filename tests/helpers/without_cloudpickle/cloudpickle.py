"""First in the path, it makes an installed cloudpickle look missing."""

raise ModuleNotFoundError("hidden by the tests", name="cloudpickle")
