"The systems that the paper compares with, each a small `LossTerms`."
