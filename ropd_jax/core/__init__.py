"""The mathematics of the method as pure functions of arrays: no sibling room is imported here."""
