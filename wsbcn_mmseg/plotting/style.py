"""Colors and markers that are distinguishable with color blindness and in black-and-white prints."""
COLORS = ('#0072B2', '#E69F00', '#009E73', '#CC79A7', '#56B4E9', '#D55E00', '#F0E442', '#000000')  # Okabe and Ito's
MARKERS = 'os^Dv*XP'
