"""What may be concluded: paired contrasts, the rule of evidence, trends over sizes.

Read evidence (the rule), compare (the one comparison from which everything is shown), size_trends, matched_loss,
held_out_parts and answers (the sentence). Imports analysis.study.
"""
