"""Surgery tested as compilers are tested: random small networks, random plans, and laws that must hold for each."""
