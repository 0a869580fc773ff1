"""The error of everything that reads a city file."""


class CityFileError(ValueError):
    """A city file that cannot be used.

    The text names the file, the key and its value, and says what would be right.
    """
