"""Streets of OpenStreetMap: networks of a box, and points at even distances along them."""
