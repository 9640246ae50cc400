"""Before calibration: graphs made ready, and observers put into them."""
