-- Gives a grant back.
return give_back(false)
