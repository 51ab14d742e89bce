"""Colors and markers that people with color blindness and black-and-white prints can tell apart."""
COLORS = ('#0072B2', '#E69F00', '#009E73', '#CC79A7', '#56B4E9', '#D55E00', '#F0E442', '#000000')  # Okabe and Ito's
MARKERS = 'os^Dv*XP'
