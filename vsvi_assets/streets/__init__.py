"""Streets of OpenStreetMap: networks of an area, and points at even distances along them."""
