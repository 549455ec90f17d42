"""`python -m benchmarks.recipes`: what each recipe learns from how many labels, at which cost."""

from benchmarks.recipes.measure import main

if __name__ == "__main__":
    main()
