"""Was a response a refusal, an answer, neither?"""
