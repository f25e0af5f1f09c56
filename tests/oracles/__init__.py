"""The rule of every method in NumPy, written from its text alone.

One file a family, named as the file of the method. A rule is a function of a
`step.Step` and of the arguments of the method; it returns the gradients that
the base optimizer gets, or an `step.Update`. What a rule draws, it draws by the
keys of the library; all else shares no code with it.
"""
