"What networks see: class maps, figures, curves, the explorer."
