"""The commands of ``cmrm`` beside ``run``, by what they are about; ``workbook`` gathers them."""
