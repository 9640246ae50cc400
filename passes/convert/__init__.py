"""After calibration: ranges, integers, learned roundings."""
