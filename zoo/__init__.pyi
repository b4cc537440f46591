from .hub.export import export as export
from .hub.loading import load as load
from .hub.trained import list_models as list_models
from .models.classifier import Classifier as Classifier
from .models.diffusion.consistency import ConsistencyModel as ConsistencyModel
from .models.diffusion.module import Diffusion as Diffusion
from .models.gan.module import GAN as GAN
from .models.mlp.module import MLPClassifier as MLPClassifier
from .models.resnet.module import ResNetClassifier as ResNetClassifier
from .models.seq2seq.module import Seq2Seq as Seq2Seq
from .models.transformer.module import TransformerLM as TransformerLM
from .models.vit.module import ViTClassifier as ViTClassifier

__version__: str
