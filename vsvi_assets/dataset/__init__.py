"""What others get of a city: one table, photographs with EXIF, views of panoramas, archives."""
