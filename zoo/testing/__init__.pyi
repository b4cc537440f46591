from .answers import ContractError as ContractError
from .callbacks import CALLBACK_CHECKS as CALLBACK_CHECKS
from .callbacks import check_callback as check_callback
from .datamodules import DATAMODULE_CHECKS as DATAMODULE_CHECKS
from .datamodules import check_datamodule as check_datamodule
from .models import MODEL_CHECKS as MODEL_CHECKS
from .models import check_model as check_model
