"""The mathematics of the method as pure functions of arrays: imports no other folder of the package."""
