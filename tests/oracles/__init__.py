"""The rule of every method in NumPy, written only from its text.

There is a file for each family, named like the file of the method. A rule is a
function of a `step.Step` and of the arguments of the method. It returns the
gradients for the base optimizer, or a `step.Update`. Rules use the random keys
of the library, but no other code of it.
"""
